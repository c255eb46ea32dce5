"""Statistics: pure functions on arrays and tidy tables; none knows of judges, editors or the engine (docs/statistics.md).

`outcomes`, `isr_at_k`: rates with interval, bounds, band. `intervals`: of one rate. `control`: excess and its company.
`paired`, `significance`, `compare`: methods on the same cases. `power`: sample size. `agreement`, `agreement_table`: Table I.
`prediction_powered`, `calibration`, `dawid_skene`: human labels. `bootstrap`: resampling of images.
"""
