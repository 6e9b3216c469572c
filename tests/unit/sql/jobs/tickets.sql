-- Tickets of a help desk, few enough to follow by hand: opened again after they were closed, too slow, and tossed around.
CREATE TABLE steps (
  ticket INT, state STRING, agent STRING, at_ TIMESTAMP(3), WATERMARK FOR at_ AS at_ - INTERVAL '1' MINUTE
) WITH ('connector' = 'filesystem', 'path' = 'steps.csv', 'format' = 'csv');

CREATE TABLE reopened (ticket INT, closed_at TIMESTAMP(3), opened_at TIMESTAMP(3), first_agent STRING, closings BIGINT)
WITH ('connector' = 'filesystem', 'path' = 'reopened.json', 'format' = 'json');
CREATE TABLE slow (ticket INT, minutes_ BIGINT, agents STRING)
WITH ('connector' = 'filesystem', 'path' = 'slow.json', 'format' = 'json');
CREATE TABLE handed_on (ticket INT, from_ STRING, to_ STRING, n BIGINT)
WITH ('connector' = 'filesystem', 'path' = 'handed_on.json', 'format' = 'json');
CREATE TABLE load_of_hours (hour_ STRING, agent STRING, n BIGINT, share STRING)
WITH ('connector' = 'filesystem', 'path' = 'load_of_hours.json', 'format' = 'json');

INSERT INTO reopened
SELECT ticket, closed_at, opened_at, first_agent, closings
FROM steps MATCH_RECOGNIZE (
  PARTITION BY ticket ORDER BY at_
  MEASURES O.agent AS first_agent, FIRST(C.at_) AS closed_at, R.at_ AS opened_at, COUNT(C.state) AS closings
  ONE ROW PER MATCH AFTER MATCH SKIP TO LAST R
  PATTERN (O W* C+ R) WITHIN INTERVAL '2' HOUR
  DEFINE O AS O.state = 'open', W AS W.state = 'work', C AS C.state = 'closed', R AS R.state = 'open'
);

INSERT INTO slow
SELECT ticket, TIMESTAMPDIFF(MINUTE, MIN(at_), MAX(at_)), LISTAGG(DISTINCT agent, '/')
FROM steps WHERE state <> 'note' GROUP BY ticket HAVING TIMESTAMPDIFF(MINUTE, MIN(at_), MAX(at_)) > 60;

INSERT INTO handed_on
SELECT ticket, was, agent, COUNT(*) OVER (PARTITION BY ticket ORDER BY at_)
FROM (SELECT ticket, agent, at_, LAG(agent) OVER (PARTITION BY ticket ORDER BY at_) AS was FROM steps WHERE agent IS NOT NULL)
WHERE was <> agent;

INSERT INTO load_of_hours
SELECT DATE_FORMAT(w, 'HH') || 'h', agent, n, CAST(100 * n / total AS STRING) || '%'
FROM (
  SELECT a.window_start AS w, a.agent, a.n, t.n AS total
  FROM (
    SELECT window_start, window_end, COALESCE(agent, '?') AS agent, COUNT(*) AS n
    FROM TABLE(TUMBLE(TABLE steps, DESCRIPTOR(at_), INTERVAL '1' HOUR)) GROUP BY window_start, window_end, COALESCE(agent, '?')
  ) AS a JOIN (
    SELECT window_start, window_end, COUNT(*) AS n
    FROM TABLE(TUMBLE(TABLE steps, DESCRIPTOR(at_), INTERVAL '1' HOUR)) GROUP BY window_start, window_end
  ) AS t ON a.window_start = t.window_start AND a.window_end = t.window_end
);

---- rows reopened.json
1, 2024-05-01 09:20:00, 2024-05-01 09:40:00, ada, 1
1, 2024-05-01 10:05:00, 2024-05-01 10:30:00, bo, 2
3, 2024-05-01 10:50:00, 2024-05-01 11:10:30, NULL, 1

---- rows slow.json
1, 105, ada/bo
2, 90, cy
3, 70, ada

---- rows handed_on.json
1, ada, bo, 1
1, bo, ada, 2
2, cy, bo, 1
2, bo, cy, 2
3, ada, cy, 1

---- rows load_of_hours.json
08h, cy, 1, 100%
09h, ada, 2, 33%
09h, bo, 3, 50%
09h, cy, 1, 16%
10h, ?, 1, 10%
10h, ada, 2, 20%
10h, bo, 4, 40%
10h, cy, 3, 30%
11h, ada, 1, 50%
11h, cy, 1, 50%
