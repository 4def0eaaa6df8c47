"""The acoustic model of live detection: a causal network trained with CTC on digits, other words and silence."""
