"""The worker: one spawned process per campaign, and the handle the app holds on it.

The only module that knows processes; the logic it drives lives in core.campaign.
"""
