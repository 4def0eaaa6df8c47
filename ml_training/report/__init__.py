"""HTML reports, tables and plots of trainings, evaluations and searches."""
