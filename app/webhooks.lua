-- Every change of a delivery. An entry `{task_id}.{event}` of the outbox, which is sorted by the time of the next
-- try, is written by jobs.lua in the very move that makes the event happen. What is known of its delivery stands
-- in the job's own record, so that both are kept, deleted and forgotten together.
--   KEYS[1] the record, KEYS[2] the outbox; ARGV[1] the move, ARGV[2] the event, ARGV[3] the entry, then its needs.
local key, outbox = KEYS[1], KEYS[2]
local event, entry = ARGV[2], ARGV[3]
local tries, lease, holder = 'webhook_tries:' .. event, 'webhook_lease:' .. event, 'webhook_holder:' .. event
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

local function get(field) return redis.call('HGET', key, field) end
local function put(...) redis.call('HSET', key, ...) end
local function due(at) redis.call('ZADD', outbox, string.format('%.6f', at), entry) end
local function leased() return (tonumber(get(lease) or '') or 0) > now end

local moves = {}

-- token, lease seconds, most tries: the right to deliver this entry now, which no one else has until the lease ends.
function moves.claim()
  if not get(tries) then
    redis.call('ZREM', outbox, entry)
    return {'gone', 0}
  end
  -- Whoever holds it has moved its time to the end of the lease.
  if (tonumber(redis.call('ZSCORE', outbox, entry) or '') or math.huge) > now then return {'held', 0} end
  local try = redis.call('HINCRBY', key, tries, 1)
  if try > tonumber(ARGV[6]) then
    redis.call('ZREM', outbox, entry)
    return {'exhausted', try}
  end
  put(holder, ARGV[4], lease, string.format('%.3f', now + ARGV[5]))
  due(now + ARGV[5])
  return {'claimed', try}
end

-- token, seconds until the next try (or '' for none), most tries, entries to keep, then what happened as JSON.
function moves.settle()
  if not get(tries) or get(holder) ~= ARGV[4] then return {'lost'} end
  redis.call('HDEL', key, lease, holder)
  local deliveries, last = cjson.decode(get('deliveries') or '[]'), cjson.decode(ARGV[8])
  last.at = math.floor(now * 1000) / 1000
  deliveries[#deliveries + 1] = last
  while #deliveries > tonumber(ARGV[7]) do table.remove(deliveries, 1) end
  put('deliveries', cjson.encode(deliveries))
  redis.call('HINCRBY', key, 'version', 1)
  if ARGV[5] ~= '' and tonumber(get(tries)) < tonumber(ARGV[6]) then
    due(now + ARGV[5])
    return {'again'}
  end
  redis.call('ZREM', outbox, entry)
  return {'over'}
end

-- seconds: its turn comes later, without counting as a try. Whoever took it, or has settled it meanwhile, has moved
-- its time.
function moves.postpone()
  if (tonumber(redis.call('ZSCORE', outbox, entry) or '') or math.huge) <= now then due(now + ARGV[4]) end
  return {'postponed'}
end

-- All tries once more. One that is under way just now is the first of them.
function moves.redeliver()
  if not get(tries) then return {'not_yet'} end
  put(tries, 0)
  if not leased() then due(now) end
  return {'queued'}
end

return moves[ARGV[1]]()
