"""The paper's experiments (docs of each in its module): rows, a picture, and the words about it in the report.

storage   Table 2: what the cloud really holds
index     section 6.2.2: index entries, transactions and bytes on chain, requests
fig7      response time against the number of shared parts
fig8      response time against the number of concurrent users, one chain and two
changes   section 6.2.4: redefining a part, changing rights
claims    the paper's claims, the tests that show them, and what was measured
"""
