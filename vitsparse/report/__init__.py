"""Figures and tables from result values. Nothing here computes a result; matplotlib is imported only to draw."""

from .circuit_picture import draw_circuit
from .curves import draw_curves, draw_gradient_flow
from .faithfulness import draw_faithfulness, draw_latency_curve
from .pareto import Level, Mark, draw_pareto
from .style import require_matplotlib, save_figure
from .tables import results_table, speed_lines

__all__ = ["draw_curves", "draw_gradient_flow", "draw_circuit", "draw_faithfulness", "draw_latency_curve",
           "draw_pareto", "Level", "Mark", "save_figure", "require_matplotlib", "results_table", "speed_lines"]
