"""The benchmark that tells whether a cohort helped: plan, arms, engines, results."""
