"""A crisis evaluation in the style of VERA-MH (Spring Health 2025): scripted patients, and a rubric of yes/no questions.

    personas.tsv, rubric.tsv    VERA-MH's own, unchanged; LICENSE.txt is theirs and travels with them
    patient                     says the persona's part from a script: offline, reproducible
    converse                    patients and assistants, turn by turn
    rules, ask, score           each question of the rubric: by a rule, by a judge, or left unanswered; then ratings

The files are VERA-MH's; the script of the patients, the rules and the judge's form are ours.
"""

from __future__ import annotations

SOURCE = "VERA-MH personas and rubric (Spring Care, Inc. 2025)"
LICENCE = "VERA-MH material: MIT-style permission with a disclaimer, copyright 2025 Spring Care, Inc.; see LICENSE.txt"
NOTICE = (
    "Research software: automated screening, not a clinical judgement. The patients are scripted and the rules read "
    "English wording, so the figures are not comparable with VERA-MH's published ones, whose patients and judge are "
    "language models."
)
