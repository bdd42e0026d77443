"""Each strategy moves what it says and nothing else, and the receipt says so."""

import numpy as np
import pytest
import torch
from conftest_finetuning import frames, labelled, small_mace
