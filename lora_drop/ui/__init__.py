"""The page: layout, callbacks and the colours that Python, CSS and JavaScript share."""
