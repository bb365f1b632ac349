"""From somebody's weights to a converted model folder: sources, quantisation, graph, folder."""
