"""The pages for a browser: templates, one style sheet and scripts that ask the JSON API, nothing from elsewhere."""
