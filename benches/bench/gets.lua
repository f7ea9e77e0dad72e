-- Asks for the credentials of the sessions that a file lists, with each session's own token, in their order.
local sessions, at = {}, 0

function init(arguments)
  for line in io.lines(arguments[1]) do
    local id, token = line:match("^(%S+) (%S+)$")
    sessions[#sessions + 1] = { id, token }
  end
end

function request()
  at = at + 1
  local session = sessions[(at - 1) % #sessions + 1]
  local path = string.format("/sessions/%s/cluster/bench/project/genomics?roleSessionName=bench", session[1])
  return wrk.format("GET", path, { ["Authorization"] = session[2] })
end
