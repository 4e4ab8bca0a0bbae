"""The page of an evaluation: one HTML file that holds everything it shows."""
