"""SMART and Bregman for Hugging Face models: `SmartObjective` in a loop of your own, `SmartTrainer` in theirs.

Any encoder with a head for labels will do (BERT, RoBERTa, DeBERTa, DistilBERT, ModernBERT, ELECTRA, ALBERT, ...): the
word embeddings are perturbed where the model looks them up. The guide is docs/huggingface.md.
"""

from importlib.util import find_spec

for _name in ("transformers", "accelerate"):
    if find_spec(_name) is None:
        raise ImportError(
            f"smartcs.integrations.transformers needs {_name}: pip install 'smartcs[transformers]'", name=_name
        )

from smartcs.smart import BetaSchedule, WeightSchedule  # noqa: E402

from .arguments import ProblemType, SmartArguments  # noqa: E402
from .objective import SmartObjective, SmartOutput, SmartTerms  # noqa: E402
from .trainer import SmartTrainer  # noqa: E402

__all__ = [
    "BetaSchedule",
    "ProblemType",
    "SmartArguments",
    "SmartObjective",
    "SmartOutput",
    "SmartTerms",
    "SmartTrainer",
    "WeightSchedule",
]
