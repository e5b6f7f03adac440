"""The benchmark that answers whether a cohort helped: plan, arms, engines, results."""
