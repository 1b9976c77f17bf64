"""One audit in several processes: exchange what each has observed of its shards, and merge it to one report."""
