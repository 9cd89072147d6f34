-- Every change of a job's record. One call is one move: it checks the state, writes, keeps the time-sorted
-- indexes in step, and tells the subscribers. jobs.py puts ALLOWED (TRANSITIONS of record.py) and LATER in front.
--   KEYS[1] the record; ARGV[1] the move, ARGV[2] the task id, then what the move needs.
-- Answers {verdict, ...}. Times are seconds by Redis' own clock, so that no two machines' clocks matter.
local key, id = KEYS[1], ARGV[2]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

local function get(field) return redis.call('HGET', key, field) end
local function time(field) return tonumber(get(field) or '') or 0 end
local function put(...) redis.call('HSET', key, ...) end
-- As exact as the indexes: who comes back finds its place by it.
local function stamp(field) put(field, string.format('%.6f', now)) end
local function running(phase) return phase == 'STARTING' or phase == 'RUNNING' or phase == 'UPLOADING' end
local function index(name, score) redis.call('ZADD', 'jobs:' .. name, string.format('%.6f', score), id) end
local function unindex(...) for _, name in ipairs({...}) do redis.call('ZREM', 'jobs:' .. name, id) end end

local function tell()
  local fields = redis.call('HMGET', key, 'phase', 'status', 'step', 'steps')
  redis.call('PUBLISH', 'jobs:events', cjson.encode({
    task_id = id, version = redis.call('HINCRBY', key, 'version', 1), phase = fields[1], status = fields[2],
    step = tonumber(fields[3] or ''), steps = tonumber(fields[4] or '')}))
end

-- The outbox of webhooks (webhooks.lua): one entry for each event that the caller asked for, at its first time.
local function announce(event)
  local asked = get('webhook_events')
  if not asked or not string.find(asked, '"' .. event .. '"', 1, true) then return end
  if redis.call('HSETNX', key, 'webhook_tries:' .. event, 0) == 0 then return end
  redis.call('ZADD', 'webhooks:due', string.format('%.6f', now), id .. '.' .. event)
end

local leave = {
  AWAITING_UPLOAD = function() unindex('uploads') end,
  QUEUED = function() unindex('unconfirmed', 'queued:' .. get('queue')) end,
}
local enter = {
  AWAITING_UPLOAD = function() index('uploads', time('upload_expires_at')) end,
  QUEUED = function()
    -- Who comes back, because its worker left or was lost, takes the place in line that it had at first; since when it
    -- waits is `queued_at`.
    local before = get('queued_at')
    if before then redis.call('HSETNX', key, 'place', before) end
    local place = before and time('place') or now
    stamp('queued_at')
    put('token', 'none')
    index('unconfirmed', now)
    index('queued:' .. get('queue'), get('priority') == 'low' and place + LATER or place)
    unindex('leases')
  end,
  STARTING = function()
    stamp('started_at')
    announce('started')
  end,
  DONE = function()
    stamp('finished_at')
    unindex('leases', 'deadlines', 'open:' .. get('caller'), 'model:' .. get('model_version'))
    redis.call('HDEL', key, 'lease', 'step', 'steps')
    announce('completed')
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

-- What one step of this model takes a worker, in seconds, as an average in which the last ten jobs count most. Only the
-- model's own time: what else a job costs does not grow with its steps. Jobs that were made together share their time.
local function learn(steps)
  local metrics = cjson.decode(get('metrics') or '{}')
  -- What an earlier attempt had made already took none.
  if not metrics.inference_ms then return end
  if steps < 1 then return end
  local took = metrics.inference_ms / 1000 / steps / (metrics.batch_size or 1)
  local before = tonumber(redis.call('HGET', 'models:step_seconds', get('model_version')) or '')
  redis.call('HSET', 'models:step_seconds', get('model_version'), before and before * 0.8 + took * 0.2 or took)
end

local moves = {}

-- idempotency key ('' without), digest of the request, seconds to remember both, most jobs queued and most open
-- jobs of this caller (0: any number), seconds that a caller's jobs are listed, until when (0: whenever), then field,
-- value, ...: the new record, AWAITING_UPLOAD or QUEUED.
function moves.create()
  if redis.call('EXISTS', key) == 1 then return {'exists', id} end
  -- This Redis was stopped or busy, and nobody waits for the answer any more.
  if tonumber(ARGV[9]) > 0 and now > tonumber(ARGV[9]) then return {'late', id} end
  local ticket = 'idempotency:' .. ARGV[3]
  if ARGV[3] ~= '' then
    local earlier = redis.call('HMGET', ticket, 'task_id', 'digest')
    if earlier[1] then return {earlier[2] == ARGV[4] and 'replay' or 'reused', earlier[1]} end
  end
  put('token', 'none', unpack(ARGV, 10))
  -- Made again from a message, when there may be nothing of the job any more because its time is over.
  local deadline = get('deadline_at') and time('deadline_at') or now + time('deadline_seconds')
  if deadline <= now then
    redis.call('DEL', key)
    return {'overdue', id}
  end
  local caller = get('caller')
  -- A record that is lost leaves its id behind. Nothing is open long after its deadline.
  redis.call('ZREMRANGEBYSCORE', 'jobs:open:' .. caller, '-inf', now - 3600)
  redis.call('ZREMRANGEBYSCORE', 'jobs:of:' .. caller, '-inf', now - ARGV[8])
  local function full(name, most) return tonumber(most) > 0 and redis.call('ZCARD', 'jobs:' .. name) >= tonumber(most) end
  local refusal = full('queued:' .. get('queue'), ARGV[6]) and 'queue_full'
    or full('open:' .. caller, ARGV[7]) and 'quota_exceeded'
  if refusal then
    redis.call('DEL', key)
    return {refusal, id}
  end
  if ARGV[3] ~= '' then
    redis.call('HSET', ticket, 'task_id', id, 'digest', ARGV[4])
    redis.call('EXPIRE', ticket, ARGV[5])
    put('ticket', ARGV[3])
  end
  index('open:' .. caller, deadline)
  index('of:' .. caller, now)
  redis.call('EXPIRE', 'jobs:of:' .. caller, ARGV[8])
  index('model:' .. get('model_version'), deadline)
  stamp('created_at')
  put('deadline_at', string.format('%.3f', deadline))
  if get('upload_seconds') then put('upload_expires_at', string.format('%.3f', now + time('upload_seconds'))) end
  enter[get('phase')]()
  index('deadlines', time('deadline_at'))
  tell()
  return {'created', id, redis.call('HGETALL', key), redis.call('ZRANK', 'jobs:queued:' .. get('queue'), id),
    redis.call('HGET', 'models:step_seconds', get('model_version'))}
end

-- How long a word in a record's place outlives every message of its job: after the deadline those make nothing again.
local function outlasting(seconds) return math.ceil(math.max(tonumber(seconds), time('deadline_at') - now)) end

-- seconds: it could not be written or published, so the client is told no. What stands in the record's place for so
-- long at least makes a message that got through all the same find nothing to do, or a record that comes late. One
-- whose worker has it already is kept.
function moves.discard()
  local phase, seconds = get('phase'), outlasting(ARGV[3])
  if get('discarded') then return {'discarded'} end
  if phase then
    if phase ~= 'QUEUED' and phase ~= 'AWAITING_UPLOAD' then return {'kept'} end
    unindex('unconfirmed', 'uploads', 'deadlines', 'queued:' .. get('queue'), 'open:' .. get('caller'),
      'of:' .. get('caller'), 'model:' .. get('model_version'))
    if get('ticket') then redis.call('DEL', 'idempotency:' .. get('ticket')) end
    redis.call('DEL', key)
  end
  put('phase', 'DONE', 'discarded', '1')
  redis.call('EXPIRE', key, seconds)
  return {'discarded'}
end

-- The input picture is there.
function moves.queue()
  if get('phase') ~= 'AWAITING_UPLOAD' then return {'not_waiting'} end
  move('QUEUED')
  tell()
  return {'queued'}
end

-- token, owner, lease seconds
function moves.claim()
  local phase = get('phase')
  if not phase then return {'missing'} end
  if running(phase) then
    -- Asked again after an answer that was lost on its way.
    if get('token') == ARGV[3] then return {'claimed', redis.call('HGETALL', key)} end
    if time('lease') > now then return {'held'} end
    attempt_ended('worker_lost')
    move('QUEUED')
  elseif phase ~= 'QUEUED' then
    return {phase == 'DONE' and 'done' or 'waiting'}
  end
  if get('cancel') then return {'canceled'} end
  if time('deadline_at') <= now then return {'overdue'} end
  if time('attempt') >= time('max_attempts') then return {'exhausted'} end
  put('token', ARGV[3], 'step', 0)
  local attempts = cjson.decode(get('attempts') or '[]')
  attempts[#attempts + 1] = {attempt = redis.call('HINCRBY', key, 'attempt', 1), owner = ARGV[4], started_at = now}
  put('attempts', cjson.encode(attempts))
  move('STARTING')
  put('lease', string.format('%.3f', now + ARGV[5]))
  index('leases', now + ARGV[5])
  tell()
  return {'claimed', redis.call('HGETALL', key)}
end

local function set(names)
  local found = {}
  for _, name in ipairs(names) do found[name] = true end
  return found
end

-- Whether there is no parameter but these: a newer version's job is for its workers. One that cannot be read is nobody's,
-- and must not keep the others from their turn.
local function asks_for_no_more_than(names)
  local is_read, params = pcall(cjson.decode, get('params'))
  if not is_read then return false end
  for name in pairs(params) do
    if not names[name] then return false end
  end
  return true
end

-- as claim, then queue, how many to look at, names of parameters and models, both as JSON: the first in line that is for
-- one of these models.
function moves.claim_next()
  -- Asked again after an answer that was lost on its way: not for one more job.
  local asked = 'claim:' .. ARGV[3]
  local earlier = redis.call('GET', asked)
  if earlier then
    key, id = 'job:' .. earlier, earlier
    return {id, unpack(moves.claim())}
  end
  local names, models = set(cjson.decode(ARGV[8])), set(cjson.decode(ARGV[9]))
  for _, first in ipairs(redis.call('ZRANGE', 'jobs:queued:' .. ARGV[6], 0, ARGV[7] - 1)) do
    key, id = 'job:' .. first, first
    if models[get('model_version')] and asks_for_no_more_than(names) then
      redis.call('SET', asked, id, 'EX', math.ceil(ARGV[5]))
      return {id, unpack(moves.claim())}
    end
  end
  return {'', 'empty'}
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
  return {get('cancel') and 'cancel' or 'held'}
end

-- token, phase: the next phase of running.
function moves.advance()
  if not holds(ARGV[3]) then return {'lost'} end
  -- Said again after an answer that was lost on its way.
  if get('phase') == ARGV[4] then return {'advanced'} end
  if not move(ARGV[4]) then return {'invalid', get('phase')} end
  tell()
  return {'advanced'}
end

-- How many jobs of a model ended how, since there is this Redis: each one once, whoever ends it (census.py).
local function count()
  local outcome = get('status') == 'SUCCEEDED' and 'succeeded' or cjson.decode(get('error')).code
  redis.call('HINCRBY', 'jobs:finished', get('model_version') .. ' ' .. outcome, 1)
end

-- The end. `token` is '' for those who decide over the owner's head, `only_from` '' where any phase will do; ...: field,
-- value, ... of the result.
local function finish(token, status, seconds, quarantine, only_from, ...)
  local phase = get('phase')
  if not phase then return {'missing'} end
  if phase == 'DONE' then
    -- Said again after an answer that was lost on its way.
    return {get('token') == token and get('status') == status and 'finished' or 'done'}
  end
  if token ~= '' and not holds(token) then return {'lost'} end
  if only_from ~= '' and only_from ~= phase then return {'lost'} end
  local steps = time('steps')
  if not move('DONE') then return {'invalid', phase} end
  -- The end is not the holder's own.
  if token == '' then redis.call('HDEL', key, 'token') end
  put('status', status, 'expires_at', string.format('%.3f', now + seconds), ...)
  if status == 'SUCCEEDED' then learn(steps) end
  if quarantine == '1' then
    redis.call('ZREMRANGEBYSCORE', 'jobs:quarantine', '-inf', now - seconds)
    index('quarantine', now)
  end
  count()
  redis.call('EXPIRE', key, seconds + 86400)
  tell()
  return {'finished'}
end

-- Back into the line; but who was asked to stop ends there and then. ...: error as JSON, seconds to keep.
local function back(verdict, error, seconds)
  if get('cancel') then
    finish('', 'FAILED', seconds, '', '', 'error', error)
    return {'canceled'}
  end
  move('QUEUED')
  tell()
  return {verdict}
end

-- token, error of a canceled job as JSON, seconds to keep that: the worker gives the job back unharmed, so the attempt
-- does not count.
function moves.release()
  if not holds(ARGV[3]) then return {'lost'} end
  attempt_ended('released')
  redis.call('HINCRBY', key, 'attempt', -1)
  return back('released', ARGV[4], ARGV[5])
end

-- error of a canceled job as JSON, seconds to keep that: the worker was silent for longer than its lease.
function moves.requeue()
  if not running(get('phase')) then
    unindex('leases')
    return {'not_running'}
  end
  if time('lease') > now then return {'held'} end
  attempt_ended('worker_lost')
  return back('queued', ARGV[3], ARGV[4])
end

-- token, status, seconds to keep, quarantine ('1' or ''), the one phase from which, or '', field, value, ...
function moves.finish() return finish(ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], unpack(ARGV, 8)) end

-- error as JSON, seconds to keep: end the job at once when nobody works on it, else ask its worker to stop.
function moves.cancel()
  local phase = get('phase')
  if not phase then return {'missing'} end
  if phase == 'DONE' then return {'done'} end
  put('cancel', '1')
  if running(phase) then return {'asked'} end
  return finish('', 'FAILED', ARGV[4], '', '', 'error', ARGV[3])
end

-- seconds: leave nothing but the word that there was something, and whose it was.
function moves.delete()
  local phase = get('phase')
  if not phase or get('discarded') then return {'missing'} end
  if phase ~= 'DONE' then return {'invalid', phase} end
  -- Its word is kept for as long as a message of it may come, which it knows no more.
  if get('deleted') then return {'deleted'} end
  local caller, seconds = get('caller') or '', outlasting(ARGV[3])
  unindex('quarantine', 'of:' .. caller)
  redis.call('DEL', key)
  put('phase', 'DONE', 'deleted', '1', 'caller', caller)
  redis.call('EXPIRE', key, seconds)
  return {'deleted'}
end

-- more indexes, ...: indexes may hold an id whose record is gone (a Redis restored from an older copy, say).
function moves.forget()
  if redis.call('EXISTS', key) == 1 then return {'kept'} end
  unindex('deadlines', 'leases', 'uploads', 'unconfirmed', 'quarantine', unpack(ARGV, 3))
  return {'forgotten'}
end

return moves[ARGV[1]]()
