"""Makes tables, intervals and figures from run folders.

groups       finds out which runs are repetitions of one another, and what a run's score is
statistics   interquartile mean, stratified bootstrap, probability of improvement
summary      applies the statistics to groups, over tasks, and between methods
published    published scores to compare with
tables       headings and cells of tables
documents    the whole report as Markdown, LaTeX and CSV
figures      learning curves and intervals
"""
