"""CoViPAL's training (arXiv 2508.17243): labels, soft masks, data, both stages."""
