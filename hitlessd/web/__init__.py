"""HTTP that main itself answers: metrics and the statistics page."""
