"""Every choice in every layout: the rows come from the registry, so a choice added later is covered by itself."""
