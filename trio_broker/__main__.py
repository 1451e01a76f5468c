"""``python -m trio_broker`` is the ``trio-broker`` command."""

from trio_broker.cli.main import main

if __name__ == "__main__":
    main()
