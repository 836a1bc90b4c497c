"""What a search came to: ranked trials, what each knob did, what it cost, as data and pictures."""
