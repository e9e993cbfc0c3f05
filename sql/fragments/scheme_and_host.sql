-- Of p.url only scheme and host: user, path and query can be credentials.
substring(p.url from '^[^/]+//') || substring(p.url from '^[^/]+//(?:[^/?#\\]*@)?([^/?#\\]*)')
