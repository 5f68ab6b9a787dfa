"""From run folders to tables, intervals and figures.

groups       which runs are repetitions of one another, and what a run's score is
statistics   interquartile mean, stratified bootstrap, probability of improvement
summary      these for every group, over tasks, and between methods
published    published scores, beside which ours may be put
tables       headings and cells
documents    the whole report as Markdown, LaTeX and CSV
figures      learning curves and intervals
"""
