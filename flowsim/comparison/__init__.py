"""Comparison of a run with the simulated flow and with closed forms, in numbers, verdicts and one figure.

    fs.compare("run.nc")                        # a record of training, or a simulated result
    fs.compare(first, *others)["enlargement"]   # several initialisations

Every item has numbers, a verdict ("agrees", "disagrees", "cannot tell") by a stated criterion (`Item.criterion`), and
one sentence. If a run lacks the data for an item, the verdict is "cannot tell" and the sentence gives the reason.
Series of training pairs (`seen_...`) are preferred to those of held-out pairs, because the flow describes training.

Intervals are 95 %. Those of fits over time allow for deviations that are correlated between evaluations
(`statistics.Deviations`): for correlations of 0 to 0.9 between neighbours and at least 30 evaluations they cover the
true value in 92 to 99 % of simulated series.
"""

from flowsim.comparison.compare import Comparison, compare
from flowsim.comparison.item import Item
from flowsim.comparison.items import names

__all__ = ["Comparison", "Item", "compare", "names"]
