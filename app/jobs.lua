-- Every change of a job's record. One call is one move: it checks the state, writes, keeps the time-sorted
-- indexes in step, and tells the subscribers. jobs.py puts the table ALLOWED (from its TRANSITIONS) in front.
--   KEYS[1] the record; ARGV[1] the move, ARGV[2] the task id, then what the move needs.
-- Answers {verdict, ...}. Times are seconds by Redis' own clock, so that no two machines' clocks matter.
local key, id = KEYS[1], ARGV[2]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

local function get(field) return redis.call('HGET', key, field) end
local function time(field) return tonumber(get(field) or '') or 0 end
local function put(...) redis.call('HSET', key, ...) end
local function stamp(field) put(field, string.format('%.3f', now)) end
local function running(phase) return phase == 'STARTING' or phase == 'RUNNING' or phase == 'UPLOADING' end
local function index(name, score) redis.call('ZADD', 'jobs:' .. name, string.format('%.3f', score), id) end
local function unindex(...) for _, name in ipairs({...}) do redis.call('ZREM', 'jobs:' .. name, id) end end

local function tell()
  local fields = redis.call('HMGET', key, 'phase', 'status', 'step', 'steps')
  redis.call('PUBLISH', 'jobs:events', cjson.encode({
    task_id = id, version = redis.call('HINCRBY', key, 'version', 1), phase = fields[1], status = fields[2],
    step = tonumber(fields[3] or ''), steps = tonumber(fields[4] or '')}))
end

local leave = {
  AWAITING_UPLOAD = function() unindex('uploads') end,
  QUEUED = function() unindex('unconfirmed', 'queued:' .. get('queue')) end,
}
local enter = {
  AWAITING_UPLOAD = function() index('uploads', time('upload_expires_at')) end,
  QUEUED = function()
    stamp('queued_at')
    put('token', 'none', 'owner', '')
    index('unconfirmed', now)
    index('queued:' .. get('queue'), now)
    unindex('leases')
  end,
  STARTING = function() stamp('started_at') end,
  DONE = function()
    stamp('finished_at')
    unindex('leases', 'deadlines')
    redis.call('HDEL', key, 'lease', 'step', 'steps')
  end,
}

local function move(to)
  local from = get('phase')
  if not (ALLOWED[from] and ALLOWED[from][to]) then return false end
  if leave[from] then leave[from]() end
  put('phase', to)
  if enter[to] then enter[to]() end
  return true
end

local function attempt_ended(reason)
  local attempts = cjson.decode(get('attempts') or '[]')
  if #attempts == 0 then return end
  attempts[#attempts].ended = reason
  put('attempts', cjson.encode(attempts))
end

local function holds(token) return running(get('phase')) and get('token') == token end

local moves = {}

-- field, value, ...: the new record; its phase is AWAITING_UPLOAD or QUEUED.
function moves.create()
  if redis.call('EXISTS', key) == 1 then return {'exists'} end
  put('token', 'none', unpack(ARGV, 3))
  stamp('created_at')
  put('deadline_at', string.format('%.3f', now + time('deadline_seconds')))
  if get('upload_seconds') then put('upload_expires_at', string.format('%.3f', now + time('upload_seconds'))) end
  enter[get('phase')]()
  index('deadlines', time('deadline_at'))
  tell()
  return {'created'}
end

-- The broker has confirmed the message.
function moves.confirm()
  unindex('unconfirmed')
  return {'confirmed'}
end

-- seconds: publishing failed, so the client was told no. What stands in the record's place for a while makes
-- a message that got through all the same find nothing to do.
function moves.discard()
  if get('phase') ~= 'QUEUED' then return {'kept'} end
  unindex('unconfirmed', 'deadlines', 'queued:' .. get('queue'))
  redis.call('DEL', key)
  put('phase', 'DONE', 'discarded', '1')
  redis.call('EXPIRE', key, ARGV[3])
  return {'discarded'}
end

-- The input picture is there.
function moves.queue()
  if get('phase') ~= 'AWAITING_UPLOAD' then return {'not_waiting'} end
  move('QUEUED')
  tell()
  return {'queued'}
end

-- token, owner, lease seconds, most attempts
function moves.claim()
  local phase = get('phase')
  if not phase then return {'missing'} end
  if running(phase) then
    -- Asked again after an answer that was lost on its way.
    if get('token') == ARGV[3] then return {'claimed', redis.call('HGETALL', key)} end
    if time('lease') > now then return {'held'} end
    attempt_ended('lease_expired')
    move('QUEUED')
  elseif phase ~= 'QUEUED' then
    return {phase == 'DONE' and 'done' or 'waiting'}
  end
  if time('deadline_at') <= now then return {'overdue'} end
  if time('attempt') >= tonumber(ARGV[6]) then return {'exhausted'} end
  put('token', ARGV[3], 'owner', ARGV[4], 'step', 0)
  local attempts = cjson.decode(get('attempts') or '[]')
  attempts[#attempts + 1] = {attempt = redis.call('HINCRBY', key, 'attempt', 1), owner = ARGV[4], started_at = now}
  put('attempts', cjson.encode(attempts))
  move('STARTING')
  put('lease', string.format('%.3f', now + ARGV[5]))
  index('leases', now + ARGV[5])
  tell()
  return {'claimed', redis.call('HGETALL', key)}
end

-- token, lease seconds, [step, steps]: the worker is alive.
function moves.renew()
  if not holds(ARGV[3]) then return {'lost'} end
  put('lease', string.format('%.3f', now + ARGV[4]))
  index('leases', now + ARGV[4])
  if ARGV[5] then
    put('step', ARGV[5], 'steps', ARGV[6])
    tell()
  end
  return {'held'}
end

-- token, phase: the next phase of running.
function moves.advance()
  if not holds(ARGV[3]) then return {'lost'} end
  if not move(ARGV[4]) then return {'invalid', get('phase')} end
  tell()
  return {'advanced'}
end

-- token: the worker gives the job back unharmed, so the attempt does not count.
function moves.release()
  if not holds(ARGV[3]) then return {'lost'} end
  attempt_ended('released')
  redis.call('HINCRBY', key, 'attempt', -1)
  move('QUEUED')
  tell()
  return {'released'}
end

-- The worker was silent for longer than its lease.
function moves.requeue()
  if not running(get('phase')) then
    unindex('leases')
    return {'not_running'}
  end
  if time('lease') > now then return {'held'} end
  attempt_ended('lease_expired')
  move('QUEUED')
  tell()
  return {'queued'}
end

-- token ('' for those who decide over the owner's head), status, seconds to keep, quarantine ('1' or ''),
-- field, value, ...: the end.
function moves.finish()
  local phase = get('phase')
  if not phase then return {'missing'} end
  if phase == 'DONE' then
    -- Said again after an answer that was lost on its way.
    return {get('token') == ARGV[3] and get('status') == ARGV[4] and 'finished' or 'done'}
  end
  if ARGV[3] ~= '' and not holds(ARGV[3]) then return {'lost'} end
  if not move('DONE') then return {'invalid', phase} end
  -- The end is not the holder's own.
  if ARGV[3] == '' then redis.call('HDEL', key, 'token') end
  put('status', ARGV[4], 'expires_at', string.format('%.3f', now + ARGV[5]), unpack(ARGV, 7))
  if ARGV[6] == '1' then index('quarantine', now) end
  redis.call('EXPIRE', key, ARGV[5] + 86400)
  tell()
  return {'finished'}
end

-- Indexes may hold an id whose record is gone (a Redis restored from an older copy, say).
function moves.forget()
  if redis.call('EXISTS', key) == 1 then return {'kept'} end
  unindex('deadlines', 'leases', 'uploads', 'unconfirmed')
  return {'forgotten'}
end

return moves[ARGV[1]]()
