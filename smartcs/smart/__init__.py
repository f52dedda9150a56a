"""SMART and Bregman regularisation for any model: nothing here knows BERT.

``adversarial`` is the smoothness-inducing regulariser, ``bregman`` the proximal point term, ``losses`` the distance l_s
of two predictions that both use, ``dropout`` equal dropout masks for models with torch's own dropout.
"""

from .adversarial import SmartRegularizer, SmartStep
from .bregman import BregmanAnchor
from .dropout import SharedDropout
from .losses import Smoothness, smoothness_loss
from .schedule import BetaSchedule, WeightSchedule

__all__ = [
    "BetaSchedule",
    "BregmanAnchor",
    "SharedDropout",
    "SmartRegularizer",
    "SmartStep",
    "Smoothness",
    "WeightSchedule",
    "smoothness_loss",
]
