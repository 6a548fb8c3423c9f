"""Pictures of attention: who may see whom, and who looks at whom; in the terminal, as SVG, as a web page."""

from quarterdeck.visualize.view import AttentionView
from quarterdeck.visualize.visualizer import AttentionMaskVisualizer

__all__ = ["AttentionMaskVisualizer", "AttentionView"]
