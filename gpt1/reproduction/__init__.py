"""The paper's tables and its figure 2: the plan of the runs, their results, and the report."""
