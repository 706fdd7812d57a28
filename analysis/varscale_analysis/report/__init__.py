"""The report of a study as one HTML file."""

from varscale_analysis.report.page import FIGURES_FOLDER, REPORT_FILE, ReportError, ReportImage, write_report

__all__ = ["FIGURES_FOLDER", "REPORT_FILE", "ReportError", "ReportImage", "write_report"]
