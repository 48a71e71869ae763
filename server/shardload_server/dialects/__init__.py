"""Wire protocols: each parses into the requests of ``shardload.service`` and phrases its answers."""
