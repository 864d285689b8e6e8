"""Our policies inside other projects, and theirs read by ours."""
