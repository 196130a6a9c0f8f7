"""When the personalizer keeps the generic answer although the module wrote a rewrite, and why.

Two cases: the profile is empty, so that there is nobody to fit the answer to; or the rewrite lost the content. The
content is lost if less than `_NEARLY_NOTHING` of it is left, in every task whose answers are texts; a title, which can
hold little of a long article, keeps it too if at least half of its own content is from the query or the generic answer.
Where the answer should say all that the query says (tweets), let n be the number of units (`lamp.content`) in the
query. The content is also lost if the rewrite holds fewer than half of n units, and has fewer than the share
`evaluation.keep_content` of n from query and generic answer together. The first of these conditions spares people who
say the same in other words: they write about as many. What a talkative black box adds to the query may go.

    reason_to_keep(task, "The boiler broke on Christmas Eve and we ate cold pizza.", generic, "christmas eve joker",
                   profile, least=0.35)
    # 'The rewrite keeps 29 % of the content; missing: boiler, broke, ate, …'

Measured (docs/results.md): on the embedded benchmark this keeps the generic answer for no gold, and for 70 % of the
rewrites that are unlike every voice's; on LaMP's own tweets for 2 % of the golds. `evaluate` does not apply the rule:
it measures the module as it is, and counts in `kept_generic` how often the rule would have acted.
"""

from __future__ import annotations

from collections.abc import Sequence

from rpo_kit.lamp.content import content_kept, rewrite_content, units
from rpo_kit.lamp.tasks import Item, Task

_NEARLY_NOTHING = 0.1  # measured, as above
_LISTED = 3  # missing words in the reason


def reason_to_keep(
    task: Task, query: str, generic: str, rewrite: str, profile: Sequence[Item], least: float
) -> str | None:
    """Why the generic answer is better than this rewrite, in a sentence; None if it is not, or with `least` 0."""
    if not least or not generic.strip():
        return None
    if not profile:
        return "The profile is empty: there is nothing to fit the answer to."
    if task.kind != "generation":
        return None
    new, of_generic, of_query = units(rewrite), units(generic), units(query)
    whole = of_query or of_generic
    shared = len(new & (of_generic | of_query)) / len(whole) if whole else 1.0
    shrunk = task.is_paraphrase and 2 * len(new) < len(whole) and shared < least
    share = rewrite_content(generic, query, rewrite).share
    own = not task.is_paraphrase and 2 * len(new & (of_generic | of_query)) >= max(1, len(new))  # as a title
    if not shrunk and (own or share >= min(_NEARLY_NOTHING, least)):
        return None
    lost = content_kept(query if of_query else generic, rewrite).lost
    words = ", ".join(lost[:_LISTED]) + (", …" if len(lost) > _LISTED else "")
    percent = f"{shared if shrunk else share:.0%}".replace("%", " %")
    return f"The rewrite keeps {percent} of the content" + (f"; missing: {words}" if words else ".")
