"""A campaign: state, events, the pure `advance`, the command queue and the store.

The campaign directory is the truth; reading it loads no torch.
"""
