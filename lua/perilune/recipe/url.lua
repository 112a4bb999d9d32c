-- SPDX-License-Identifier: Apache-2.0
-- recipe/url.lua - the address of a server: http://host:port/prefix, or https.

local M = {}

local PORTS = { http = 80, https = 443 }

-- { host, port, tls, authority, prefix }; or nil and why not.
function M.parse(url)
  local scheme, rest = url:match "^(%a[%w+.-]*)://(.+)$"
  if not scheme then
    return nil, ("'%s' is no URL; wanted http://host:port"):format(url)
  end
  if not PORTS[scheme] then
    return nil, ("'%s': wanted http or https, not '%s'"):format(url, scheme)
  end
  local authority, prefix = rest:match "^([^/]+)(.*)$"
  authority = authority or ""
  local host, port = authority:match "^%[([%x:.]+)%]:?(%d*)$"
  if not host then host, port = authority:match "^([%w._-]+):?(%d*)$" end
  local number = port == "" and PORTS[scheme] or tonumber(port)
  if not host or #host > 253 or not number or number < 1 or number > 65535
      or prefix:find "[%c%s?#]" then
    return nil, ("'%s' is no URL of a server; wanted http://host:port"):format(url)
  end
  return { host = host, port = number, tls = scheme == "https", authority = authority,
    prefix = prefix:gsub("/+$", ""):gsub("/v1$", "") }
end

return M
