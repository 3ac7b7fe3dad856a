"""Access to the pages: identity of visitors, policy, quotas, limits of requests, logins."""
