-- Opens sessions and closes each of them. A session is closed only when so many younger ones have been asked for that
-- its own opening must have been answered: no more requests are under way than there are connections.
local secret, prefix, lag
local opened, closed, turn = 0, 0, 0
local json = { ["Content-Type"] = "application/json" }

function init(arguments)
  secret, prefix, lag = arguments[1], arguments[2], tonumber(arguments[3])
  json["Authorization"] = secret
end

local function open()
  opened = opened + 1
  local body = string.format(
    '{"sessionId":"%s%d","projectId":"genomics","clusterName":"bench","clusterUser":"alice","submittedTime":"2026-01-01T00:00:00"}',
    prefix, opened)
  return wrk.format("POST", "/sessions", json, body)
end

local function close()
  closed = closed + 1
  return wrk.format("PUT", string.format("/sessions/%s%d/cluster/bench", prefix, closed), json, '{"status":"COMPLETED"}')
end

local asked = false
function request()
  -- wrk asks once before it begins, and throws that away.
  if not asked then
    asked = true
    return wrk.format("GET", "/health")
  end
  turn = 1 - turn
  if turn == 1 or opened - closed <= lag then return open() end
  return close()
end
