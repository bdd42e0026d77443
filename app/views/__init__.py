"""The panels of the screen. Each shows a `Glance` and posts commands; none knows another."""
