"""How the dashboards look: tiles, graphs, tables, and a board around them.

Owns:      sizes, colours, variables, links, the order of the panels; Grafana's JSON, by its own SDK.
Not here:  what is shown (the other modules).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.common import DataSourceRef
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

BOARD_COLUMNS: Final = 24
TILE_COLUMNS, TILE_ROWS = 2, 4
GRAPH_COLUMNS, GRAPH_ROWS = 8, 8

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG: Final = "trio-broker"
GREEN, YELLOW, RED = "green", "yellow", "red"


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL and the name of its series; ``{{label}}`` in it is replaced."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """From where on a value is worth a look, if that is before it is bad, and from where on it is bad.

    ``good``: from where on it is good; everything below is bad then.
    """

    warning: float | None = None
    bad: float | None = None
    good: float | None = None

    def build(self) -> dashboard.ThresholdsConfig:
        """Return them as Grafana has them: colours from a value upwards."""
        least = GREEN if self.good is None else RED
        steps: list[tuple[float | None, str]] = [(None, least)]
        above = ((self.warning, YELLOW), (self.bad, RED), (self.good, GREEN))
        steps += [(value, colour) for value, colour in above if value is not None]
        return (
            dashboard.ThresholdsConfig()
            .mode(models.ThresholdsMode.ABSOLUTE)
            .steps([models.Threshold(value=value, color=colour) for value, colour in steps])
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """One number in the overview; a click leads to the board that explains it.

    ``words`` are shown in place of 0 and 1.
    """

    title: str
    query: Query
    unit: str
    description: str
    board: str
    levels: Levels
    words: tuple[str, str] | None = None

    def build(self) -> stat.Panel:
        """Return it as Grafana has it."""
        panel = (
            stat.Panel()
            .title(self.title)
            .description(self.description)
            .datasource(SOURCE)
            .unit(self.unit)
            .span(TILE_COLUMNS)
            .height(TILE_ROWS)
            .no_value("no data")
            .thresholds(self.levels.build())
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
            .color_mode(common_models.BigValueColorMode.BACKGROUND)
            .graph_mode(common_models.BigValueGraphMode.NONE)
            .with_target(_target(self.query, "A"))
            .data_links([_link(self.board, f"why: the board {self.board}")])
        )
        if self.words is not None:
            named = {str(n): models.ValueMappingResult(text=word) for n, word in enumerate(self.words)}
            panel.mappings([models.ValueMap(options=named)])
        return panel


@dataclass(frozen=True, slots=True)
class Graph:
    """Lines over time. ``stacked``: their sum means something. ``top``: the highest value there can be."""

    title: str
    unit: str
    queries: Sequence[Query]
    description: str
    levels: Levels | None = None
    top: float | None = None
    stacked: bool = False
    columns: int = GRAPH_COLUMNS

    def build(self) -> timeseries.Panel:
        """Return it as Grafana has it."""
        panel = (
            timeseries.Panel()
            .title(self.title)
            .description(self.description)
            .datasource(SOURCE)
            .unit(self.unit)
            .span(self.columns)
            .height(GRAPH_ROWS)
            .min(0)
            .line_width(1)
            .fill_opacity(30 if self.stacked else 8)
            .show_points(common_models.VisibilityMode.NEVER)
            .legend(
                common.VizLegendOptions()
                .show_legend(show_legend=True)
                .display_mode(common_models.LegendDisplayMode.TABLE)
                .placement(common_models.LegendPlacement.BOTTOM)
                .calcs(["lastNotNull", "max"])
            )
            .tooltip(
                common.VizTooltipOptions()
                .mode(common_models.TooltipDisplayMode.MULTI)
                .sort(common_models.SortOrder.DESCENDING)
            )
        )
        for place, query in enumerate(self.queries):
            panel.with_target(_target(query, "ABCDEFGH"[place]))
        if self.top is not None:
            panel.max(self.top)
        if self.stacked:
            panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
        if self.levels is not None:
            panel.thresholds(self.levels.build())
            style = common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)
            panel.thresholds_style(style)
        return panel


@dataclass(frozen=True, slots=True)
class Table:
    """The labels of series as they are now, a line for each. ``labels``: the columns, from the left."""

    title: str
    expr: str
    labels: Sequence[str]
    description: str
    columns: int = GRAPH_COLUMNS
    rows: int = GRAPH_ROWS

    def build(self) -> table.Panel:
        """Return it as Grafana has it."""
        shown = {
            "excludeByName": {"Time": True, "Value": True},
            "indexByName": {label: place for place, label in enumerate(self.labels)},
        }
        return (
            table.Panel()
            .title(self.title)
            .description(self.description)
            .datasource(SOURCE)
            .span(self.columns)
            .height(self.rows)
            .no_value("none")
            .with_target(_target(Query(self.expr), "A").format(PromQueryFormat.TABLE).instant())
            .with_transformation(models.DataTransformerConfig(id_val="organize", options=shown))
        )


@dataclass(frozen=True, slots=True)
class Row:
    """Graphs and tables under one heading."""

    title: str
    graphs: Sequence[Graph | Table]


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard. Its file and its address have the name ``trio-broker-NAME``."""

    name: str
    description: str
    rows: Sequence[Row] = field(repr=False)

    @property
    def uid(self) -> str:
        """The name of its file, and its place in the address of the page."""
        return f"{TAG}-{self.name}"


def render(board: Board, overview: Sequence[Tile | Table]) -> str:
    """Return the text of the file of a board, with the overview on top of it."""
    page = (
        dashboard.Dashboard(f"{TAG} / {board.name}")
        .uid(board.uid)
        .description(board.description)
        .tags([TAG])
        .refresh("10s")
        .time("now-30m", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(_link_to_boards())
        .annotation(_restarts())
    )
    for variable in _variables():
        page.with_variable(variable)
    page.with_row(dashboard.Row("Overview"))
    for panel in overview:
        page.with_panel(panel.build())
    for row in board.rows:
        page.with_row(dashboard.Row(row.title))
        for graph in row.graphs:
            page.with_panel(graph.build())
    made = page.build()
    for number, built in enumerate(made.panels or [], start=1):
        built.id_val = number
    for link in made.links or []:
        link.placement = None  # type: ignore[assignment]  # as it may be; by default they hide in a menu
    return JSONEncoder(indent=2, sort_keys=True).encode(made) + "\n"


def _variables() -> Sequence[dashboard.DatasourceVariable | dashboard.QueryVariable]:
    def label(name: str, query: str) -> dashboard.QueryVariable:
        return (
            dashboard.QueryVariable(name)
            .label(name)
            .datasource(SOURCE)
            .query(query)
            .definition(query)
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.ALPHABETICAL_ASC)
            .multi(multi=True)
            .include_all(include_all=True)
            .current(models.VariableOption(text="All", value="$__all", selected=True))
        )

    return [
        dashboard.DatasourceVariable("datasource").label("datasource").type("prometheus"),
        label("job", "label_values(trio_broker_build_info, job)"),
        label("instance", 'label_values(trio_broker_build_info{job=~"$job"}, instance)'),
    ]


def _target(query: Query, ref: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query.expr).legend_format(query.legend).datasource(SOURCE).ref_id(ref)


def _link(board: str, title: str) -> dashboard.DashboardLink:
    """Return a link that keeps the variables and the time."""
    return dashboard.DashboardLink(title).url(f"/d/{TAG}-{board}?${{__all_variables}}&${{__url_time_range}}")


def _link_to_boards() -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink("boards")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(include_vars=True)
        .keep_time(keep_time=True)
    )


def _restarts() -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name("starts")
        .datasource(SOURCE)
        .enable(enable=True)
        .icon_color("blue")
        .expr('changes(process_start_time_seconds{job=~"$job",instance=~"$instance"}[$__rate_interval]) > 0')
        .title_format("{{instance}} was started")
    )
