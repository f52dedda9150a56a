"""Figures against values worked out by hand, losses against torch."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from smartcs.training.metrics import accuracy, majority_figures, metric, pearson, predictions, score, task_loss
