"""The report on a run's data: what is measured, what it comes to, and the page that shows it."""
