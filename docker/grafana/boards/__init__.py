"""What the dashboards show, one module for each, and how they look (panels.py)."""
