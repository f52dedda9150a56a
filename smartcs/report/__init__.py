"""Pages and pictures of runs and reproductions: self-contained HTML, PNG files, TensorBoard events."""

from smartcs.report.comparison import ComparisonRow
from smartcs.report.comparison_page import write_comparison_report
from smartcs.report.run_page import write_run_report

__all__ = ["ComparisonRow", "write_comparison_report", "write_run_report"]
