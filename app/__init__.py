"""Flywise in the browser: a Panel app over the campaign's store, queue, events and settings.

Holds no physics; importing it loads no torch. `flywise serve` and `panel serve app` both show
`app.main.page`.
"""
