"""A check of moerun on a machine with a GPU and no network: bundle, build, measure, tell."""
