"""Pages, plots and files of reports."""
