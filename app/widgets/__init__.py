"""Parts of the screen that know nothing of campaigns: they show what they are given."""
