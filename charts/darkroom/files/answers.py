import os
import time
import urllib.error
import urllib.request


def status(path):
    try:
        with urllib.request.urlopen(os.environ["URL"] + path, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return str(error)


deadline = time.monotonic() + 60
while (ready := status("/readyz")) != 200 and time.monotonic() < deadline:
    time.sleep(1)
found = {"/readyz": ready, "/tasks/no-such-task": status("/tasks/no-such-task")}
print(found)
assert found["/readyz"] == 200
# 401 where API keys are asked for.
assert found["/tasks/no-such-task"] in (404, 401)
