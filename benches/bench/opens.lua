-- Opens sessions, and writes each one's id and token into a file.
local secret, prefix, file
local asked = 0

function init(arguments)
  secret, prefix = arguments[1], arguments[2]
  file = io.open(arguments[3], "w")
  file:setvbuf("line")
end

function request()
  asked = asked + 1
  local body = string.format(
    '{"sessionId":"%s%d","projectId":"genomics","clusterName":"bench","clusterUser":"u%d","submittedTime":"2026-01-01T00:00:00"}',
    prefix, asked, asked)
  return wrk.format("POST", "/sessions", { ["Content-Type"] = "application/json", ["Authorization"] = secret }, body)
end

function response(status, headers, body)
  local id = body:match('/sessions/([^/]+)/cluster')
  local token = body:match('"AWS_CONTAINER_AUTHORIZATION_TOKEN":"([^"]+)"')
  if id and token then
    file:write(id, " ", token, "\n")
  end
end
