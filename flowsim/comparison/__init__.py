"""Theory, simulation and training on one plot: what a run did, beside what the flow and the closed forms say.

    fs.compare("run.nc")                        # a record of training, or a simulated result
    fs.compare(first, *others)["enlargement"]   # several initialisations

Every item has numbers, a verdict ("agrees", "disagrees", "cannot tell") by a stated criterion (`Item.criterion`), and
one sentence. What a run does not hold is no error: the item cannot tell, and says why. Series of
training pairs (`seen_...`) are preferred to those of held-out pairs, because the flow describes training.

Intervals are 95 %. Those of fits over time allow for deviations that are correlated from one evaluation to the next
(`statistics.Deviations`): with correlations of 0 to 0.9 between neighbours and 30 evaluations or more they cover the
truth in 92 to 99 % of simulated series.
"""

from flowsim.comparison.compare import Comparison, compare
from flowsim.comparison.item import Item
from flowsim.comparison.items import names

__all__ = ["Comparison", "Item", "compare", "names"]
